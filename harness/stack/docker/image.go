package docker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path"
	"regexp"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
)

// Limits of asking for an image.
const (
	registryTimeout = 10 * time.Second // to say whether it could be had
	pullSilence     = 60 * time.Second // without a byte: a slow network is fine, a dead one is not
	progressEvery   = 3 * time.Second
)

// Image is a container image that is in the engine's store.
type Image struct {
	Ref string // as asked for: "nginx:1.30.0"
	ID  string // "sha256:..."
}

// AbsentError says that an image is not in the engine's store.
type AbsentError struct {
	Ref      string
	Pullable bool // the registry has it
	Reason   string
}

func (e *AbsentError) Error() string { return e.Ref + ": " + e.Reason }

// Lookup finds an image in the engine's store and pulls nothing. When it is not
// there the error is an *AbsentError that tells whether it could be pulled.
func (e *Engine) Lookup(ctx context.Context, ref string) (Image, error) {
	image, err := e.present(ctx, ref)
	if _, absent := errors.AsType[*AbsentError](err); !absent {
		return image, err
	}
	limited, cancel := context.WithTimeout(ctx, registryTimeout)
	defer cancel()
	_, err = e.client.DistributionInspect(limited, e.substitute(ref), client.DistributionInspectOptions{EncodedRegistryAuth: registryAuth(limited, e.substitute(ref))})
	if err == nil {
		return Image{}, &AbsentError{Ref: ref, Pullable: true, Reason: "not here, the registry has it"}
	}
	if ctx.Err() != nil {
		return Image{}, context.Cause(ctx)
	}
	return Image{}, &AbsentError{Ref: ref, Reason: refusal(err)}
}

// present is Lookup without a question to the registry.
func (e *Engine) present(ctx context.Context, ref string) (Image, error) {
	limited, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	found, err := e.client.ImageInspect(limited, e.substitute(ref))
	if errdefs.IsNotFound(err) {
		return Image{}, &AbsentError{Ref: ref, Reason: "no such image here"}
	}
	if err != nil && noName.MatchString(err.Error()) {
		return Image{}, &AbsentError{Ref: ref, Reason: noNameMeans}
	}
	if err != nil {
		return Image{}, fmt.Errorf("%s: %s", ref, oneLine(err))
	}
	if found.ID == "" {
		return Image{}, fmt.Errorf("%s: the engine tells no id of it", ref)
	}
	return Image{Ref: ref, ID: found.ID}, nil
}

// Pull gives an image that is present and pulls it otherwise, with its progress
// on say. The error is one line.
func (e *Engine) Pull(ctx context.Context, ref string, say func(format string, args ...any)) (Image, error) {
	image, err := e.present(ctx, ref)
	if _, absent := errors.AsType[*AbsentError](err); !absent {
		return image, err
	}
	say("%s: pulling", ref)
	begun := time.Now()
	if err := e.pull(ctx, ref, say); err != nil {
		if ctx.Err() != nil {
			return Image{}, fmt.Errorf("%s: %w", ref, context.Cause(ctx))
		}
		return Image{}, fmt.Errorf("%s: cannot be pulled: %s", ref, refusal(err))
	}
	if image, err = e.present(ctx, ref); err != nil {
		return Image{}, err
	}
	say("%s: pulled in %s", ref, time.Since(begun).Round(100*time.Millisecond))
	return image, nil
}

func (e *Engine) pull(ctx context.Context, ref string, say func(format string, args ...any)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	errSilence := fmt.Errorf("nothing arrived for %s", e.silence)
	silence := time.AfterFunc(e.silence, func() { cancel(errSilence) })
	defer silence.Stop()
	cause := func(err error) error {
		if context.Cause(ctx) == errSilence {
			return errSilence
		}
		return err
	}
	name := e.substitute(ref)
	stream, err := e.client.ImagePull(ctx, name, client.ImagePullOptions{RegistryAuth: registryAuth(ctx, name)})
	if err != nil {
		return cause(err)
	}
	p := progress{ref: ref, layers: map[string]*jsonstream.Progress{}, last: time.Now()}
	for m, err := range stream.JSONMessages(ctx) {
		if err != nil {
			return cause(err)
		}
		if m.Error != nil {
			return m.Error
		}
		silence.Reset(e.silence)
		if line := p.add(m, time.Now()); line != "" {
			say("%s", line)
		}
	}
	return cause(ctx.Err())
}

// progress sums what an engine says about the layers of an image.
type progress struct {
	ref    string
	layers map[string]*jsonstream.Progress
	last   time.Time // of the last line
}

// add takes a message and gives a line when it is time for one.
func (p *progress) add(m jsonstream.Message, now time.Time) string {
	switch {
	case m.Progress != nil && m.Status == "Downloading":
		p.layers[m.ID] = m.Progress
	case m.Status == "Download complete" && p.layers[m.ID] != nil:
		p.layers[m.ID].Current = p.layers[m.ID].Total
	}
	if now.Sub(p.last) < progressEvery || len(p.layers) == 0 {
		return ""
	}
	p.last = now
	var have, all int64
	for _, l := range p.layers {
		have, all = have+l.Current, all+max(l.Total, l.Current)
	}
	// All counts the layers whose download has begun, so it may grow.
	return fmt.Sprintf("%s: pulling, %d of %d MB", p.ref, have/1e6, all/1e6)
}

// EnsureReaper has the image of Ryuk ready, where Ryuk is on: testcontainers
// starts it with the first container and fails without.
func (e *Engine) EnsureReaper(ctx context.Context, say func(format string, args ...any)) error {
	return e.reaper(func(ref string) error {
		_, err := e.Pull(ctx, ref, say)
		return err
	})
}

// LookupReaper says what EnsureReaper would, and pulls nothing.
func (e *Engine) LookupReaper(ctx context.Context) error {
	return e.reaper(func(ref string) error {
		_, err := e.Lookup(ctx, ref)
		if absent, ok := errors.AsType[*AbsentError](err); ok && absent.Pullable {
			return nil
		}
		return err
	})
}

func (e *Engine) reaper(have func(ref string) error) error {
	if !e.info.Reaper {
		return nil
	}
	//lint:ignore SA1019 nothing else tells the name
	if err := have(testcontainers.ReaperDefaultImage); err != nil {
		return fmt.Errorf("%w; it is Ryuk, which removes what a killed run leaves: with TESTCONTAINERS_RYUK_DISABLED=true runs go without, and `idlerace clean` does it", err)
	}
	return nil
}

// substitute applies TESTCONTAINERS_HUB_IMAGE_NAME_PREFIX as testcontainers
// does when it creates a container: to every name without a registry's host.
func (e *Engine) substitute(ref string) string {
	first, _, _ := strings.Cut(ref, "/")
	if e.prefix == "" || first != ref && first != "docker.io" && strings.ContainsAny(first, ".:") {
		return ref
	}
	return path.Join(e.prefix, ref)
}

// registryAuth gives the credentials for a registry, "" without: most images
// are for everyone.
func registryAuth(ctx context.Context, ref string) string {
	_, auth, err := testcontainers.DockerImageAuth(ctx, ref)
	if err != nil {
		return ""
	}
	encoded, err := authconfig.Encode(auth)
	if err != nil {
		return ""
	}
	return encoded
}

// refusals are what engines say when an image cannot be had, and what that
// means. The first that matches counts.
var refusals = []struct {
	says  *regexp.Regexp
	means string
}{
	{regexp.MustCompile(`(?i)toomanyrequests|rate limit`), "the registry's rate limit is reached; docker login raises it"},
	{regexp.MustCompile(`(?i)manifest unknown|manifest for .* not found|: not found$`), "the registry has no such tag"},
	{regexp.MustCompile(`(?i)no matching manifest`), "the registry has it, but not for this engine's platform"},
	{regexp.MustCompile(`(?i)pull access denied|\bdenied\b|repository .* not found|name unknown|insufficient_scope|unauthorized|authentication required`), "the registry has no such image, or wants docker login"},
	{regexp.MustCompile(`(?i)no such host|server misbehaving|temporary failure in name resolution|network is unreachable|no route to host|connection refused|connection reset|i/o timeout|tls handshake timeout|client\.timeout|context deadline exceeded|request canceled|proxyconnect`), "the engine does not reach the registry"},
	{regexp.MustCompile(`nothing arrived`), "the registry has fallen silent"},
	{regexp.MustCompile(`(?i)no space left`), "the engine's disk is full"},
	{noName, noNameMeans},
}

var noName = regexp.MustCompile(`(?i)invalid reference format`)

const noNameMeans = "not the name of an image"

// telling is the part of them that is worth repeating.
var telling = regexp.MustCompile(`(?:proxyconnect tcp: |dial tcp:? |nothing arrived ).*`)

// refusal is one line that says why an image cannot be had.
func refusal(err error) string {
	s := oneLine(err)
	for _, r := range refusals {
		if !r.says.MatchString(s) {
			continue
		}
		if detail := telling.FindString(s); detail != "" {
			return r.means + ": " + detail
		}
		return r.means
	}
	if netErr, ok := errors.AsType[net.Error](err); ok && netErr.Timeout() {
		return "the engine does not reach the registry"
	}
	return s
}
