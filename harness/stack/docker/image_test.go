package docker

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/client"
)

// quietly is for what nobody needs to hear.
func quietly(string, ...any) {}

// registry serves one image, name "r/image" and tag "1", as
// https://distribution.github.io/distribution/spec/api/ has it; "r/secret" wants
// a login. hold delays the layer.
func registry(t *testing.T, arch string, hold <-chan struct{}) (host string) {
	t.Helper()
	sum := func(b []byte) string { h := sha256.Sum256(b); return "sha256:" + hex.EncodeToString(h[:]) }
	var root, layer bytes.Buffer
	w := tar.NewWriter(&root)
	noise := make([]byte, 3<<20)
	for i := range noise {
		noise[i] = byte(rand.Uint32()) // also makes the image a new one in each test
	}
	w.WriteHeader(&tar.Header{Name: "noise", Mode: 0o644, Size: int64(len(noise))})
	w.Write(noise)
	w.Close()
	z := gzip.NewWriter(&layer)
	z.Write(root.Bytes())
	z.Close()
	config, _ := json.Marshal(map[string]any{
		"architecture": arch, "os": "linux", "config": map[string]any{},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{sum(root.Bytes())}},
	})
	blobs := map[string][]byte{sum(config): config, sum(layer.Bytes()): layer.Bytes()}
	const manifestType = "application/vnd.docker.distribution.manifest.v2+json"
	manifest, _ := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": manifestType,
		"config": map[string]any{"mediaType": "application/vnd.docker.container.image.v1+json", "size": len(config), "digest": sum(config)},
		"layers": []any{map[string]any{"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "size": layer.Len(), "digest": sum(layer.Bytes())}},
	})
	fail := func(w http.ResponseWriter, status int, code string) {
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"errors":[{"code":%q,"message":%q}]}`, code, strings.ToLower(strings.ReplaceAll(code, "_", " ")))
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, what, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/r/"), "/")
		kind, id, _ := strings.Cut(what, "/")
		switch {
		case r.URL.Path == "/v2/":
		case name == "secret":
			fail(w, http.StatusForbidden, "DENIED")
		case kind == "manifests" && (id == "1" || id == sum(manifest)):
			w.Header().Set("Content-Type", manifestType)
			w.Header().Set("Docker-Content-Digest", sum(manifest))
			w.Write(manifest)
		case kind == "blobs" && blobs[id] != nil:
			if id == sum(layer.Bytes()) && hold != nil && r.Method == http.MethodGet {
				w.Header().Set("Content-Length", fmt.Sprint(layer.Len()))
				w.Write(layer.Bytes()[:1<<20])
				w.(http.Flusher).Flush()
				select {
				case <-hold:
				case <-r.Context().Done():
				}
				w.Write(layer.Bytes()[1<<20:])
				return
			}
			w.Write(blobs[id])
		case kind == "manifests":
			fail(w, http.StatusNotFound, "MANIFEST_UNKNOWN")
		default:
			fail(w, http.StatusNotFound, "NAME_UNKNOWN")
		}
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func TestPull(t *testing.T) {
	e := engine(t)
	if !e.Info().Local {
		// It listens on this machine's loopback; an engine elsewhere has another.
		t.Skip("docker: the engine does not reach this test's registry")
	}
	hold := make(chan struct{})
	host := registry(t, e.Info().Arch, hold)
	ref := host + "/r/image:1"

	_, err := e.Lookup(t.Context(), ref)
	if absent, ok := errors.AsType[*AbsentError](err); !ok || *absent != (AbsentError{Ref: ref, Pullable: true, Reason: "not here, the registry has it"}) {
		t.Fatalf("%v", err)
	}
	lines := make(chan string, 100)
	say := func(format string, args ...any) { lines <- fmt.Sprintf(format, args...) }

	// Given up in the middle it says that it was.
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(time.Second, cancel)
	if _, err := e.Pull(ctx, ref, say); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled pull: %v", err)
	}
	if got := <-lines; got != ref+": pulling" {
		t.Error(got)
	}
	time.AfterFunc(time.Second, func() { close(hold) })
	image, err := e.Pull(t.Context(), ref, say)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.client.ImageRemove(context.Background(), image.ID, client.ImageRemoveOptions{}) })
	if image.Ref != ref || !strings.HasPrefix(image.ID, "sha256:") {
		t.Errorf("%+v", image)
	}
	if found, err := e.Lookup(t.Context(), ref); err != nil || found != image {
		t.Errorf("%+v, %v", found, err)
	}
	if again, err := e.Pull(t.Context(), ref, func(string, ...any) { t.Error("it says something") }); err != nil || again != image {
		t.Errorf("%+v, %v", again, err)
	}
	close(lines)
	var said []string
	for l := range lines {
		said = append(said, l)
	}
	if len(said) < 2 || said[0] != ref+": pulling" || !strings.HasPrefix(said[len(said)-1], ref+": pulled in ") {
		t.Errorf("%q", said)
	}
}

func TestPullFallsSilent(t *testing.T) {
	e := engine(t)
	if !e.Info().Local {
		// It listens on this machine's loopback; an engine elsewhere has another.
		t.Skip("docker: the engine does not reach this test's registry")
	}
	hold := make(chan struct{})
	ref := registry(t, e.Info().Arch, hold) + "/r/image:1"
	t.Cleanup(func() { close(hold) }) // the engine goes on for a while
	hasty := &Engine{client: e.client, silence: time.Second}
	if _, err := hasty.Pull(t.Context(), ref, quietly); err == nil || err.Error() != ref+": cannot be pulled: the registry has fallen silent: nothing arrived for 1s" {
		t.Errorf("%v", err)
	}
}

func TestCannotBePulled(t *testing.T) {
	e := engine(t)
	refs := map[string]string{
		"127.0.0.1:1/r/image:1": "the engine does not reach the registry: dial tcp 127.0.0.1:1: ",
		"no.invalid/image:1":    "the engine does not reach the registry: ",
		"no:such:name":          "not the name of an image",
	}
	if e.Info().Local {
		host := registry(t, e.Info().Arch, nil)
		refs[host+"/r/image:2"] = "the registry has no such tag"
		refs[host+"/r/secret:1"] = "the registry has no such image, or wants docker login"
	}
	for ref, want := range refs {
		_, err := e.Lookup(t.Context(), ref)
		if absent, ok := errors.AsType[*AbsentError](err); !ok || absent.Pullable || !strings.HasPrefix(absent.Reason, want) {
			t.Errorf("Lookup: %v", err)
		}
		_, err = e.Pull(t.Context(), ref, quietly)
		if err == nil || !strings.HasPrefix(err.Error(), ref+": cannot be pulled: "+want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("Pull: %v", err)
		}
	}
}

// What engines and registries say.
func TestRefusal(t *testing.T) {
	const daemon = "Error response from daemon: "
	for said, want := range map[string]string{
		daemon + `Get "https://registry-1.docker.io/v2/": dial tcp: lookup registry-1.docker.io on 10.0.0.1:53: no such host`:                                                     "the engine does not reach the registry: dial tcp: lookup registry-1.docker.io on 10.0.0.1:53: no such host",
		daemon + `Get "https://ghcr.io/v2/": dial tcp 140.82.121.34:443: connect: connection refused`:                                                                             "the engine does not reach the registry: dial tcp 140.82.121.34:443: connect: connection refused",
		daemon + `Get "https://registry-1.docker.io/v2/": net/http: TLS handshake timeout`:                                                                                        "the engine does not reach the registry",
		daemon + `Get "https://registry-1.docker.io/v2/": net/http: request canceled while waiting for connection (Client.Timeout exceeded while awaiting headers)`:               "the engine does not reach the registry",
		daemon + `Get "https://registry-1.docker.io/v2/": proxyconnect tcp: dial tcp 10.0.0.1:3128: i/o timeout`:                                                                  "the engine does not reach the registry: proxyconnect tcp: dial tcp 10.0.0.1:3128: i/o timeout",
		daemon + `manifest for nginx:1.99 not found: manifest unknown: manifest unknown`:                                                                                          "the registry has no such tag",
		daemon + `failed to resolve reference "docker.io/library/nginx:1.99": docker.io/library/nginx:1.99: not found`:                                                            "the registry has no such tag",
		daemon + `pull access denied for nginxx, repository does not exist or may require 'docker login': denied: requested access to the resource is denied`:                     "the registry has no such image, or wants docker login",
		daemon + `no matching manifest for linux/arm64/v8 in the manifest list entries`:                                                                                           "the registry has it, but not for this engine's platform",
		daemon + `toomanyrequests: You have reached your pull rate limit. You may increase the limit by authenticating and upgrading: https://www.docker.com/increase-rate-limit`: "the registry's rate limit is reached; docker login raises it",
		daemon + `write /var/lib/docker/tmp/GetImageBlob1: no space left on device`:                                                                                               "the engine's disk is full",
		daemon + `invalid reference format: repository name must be lowercase`:                                                                                                    "not the name of an image",
		"nothing arrived for 1m0s":     "the registry has fallen silent: nothing arrived for 1m0s",
		daemon + "something\nelse\r\n": "something; else",
	} {
		if got := refusal(errors.New(said)); got != want {
			t.Errorf("%s\n got %s\nwant %s", said, got, want)
		}
	}
	if got := refusal(fmt.Errorf("x: %w", os.ErrDeadlineExceeded)); got != "the engine does not reach the registry" {
		t.Error(got)
	}
}

func TestOneLine(t *testing.T) {
	if got := oneLine(errors.Join(errors.New("a"), errors.New("a"), errors.New("b\n\n  c"))); got != "a; b; c" {
		t.Error(got)
	}
	if got := oneLine(errors.New(strings.Repeat("ü", 1000))); got != strings.Repeat("ü", 400)+"..." {
		t.Error(got)
	}
}

func TestProgress(t *testing.T) {
	start := time.Unix(0, 0)
	p := progress{ref: "nginx:1", layers: map[string]*jsonstream.Progress{}, last: start}
	var got []string
	at := func(ms int, id, status string, now, all int64) {
		m := jsonstream.Message{ID: id, Status: status}
		if all != 0 || now != 0 {
			m.Progress = &jsonstream.Progress{Current: now, Total: all}
		}
		if l := p.add(m, start.Add(time.Duration(ms)*time.Millisecond)); l != "" {
			got = append(got, fmt.Sprint(ms, " ", l))
		}
	}
	at(5000, "", "Pulling from library/nginx", 0, 0) // no layer yet
	at(5001, "a", "Downloading", 1e6, 40e6)
	at(5002, "a", "Downloading", 2e6, 40e6)
	at(7999, "b", "Downloading", 3e6, 31e6)
	at(8001, "a", "Downloading", 30e6, 40e6)
	at(8002, "a", "Downloading", 31e6, 40e6)
	at(11001, "a", "Download complete", 0, 0)
	at(14001, "a", "Extracting", 1, 40e6) // not a download
	at(17001, "c", "Downloading", 5e6, -1)
	want := []string{
		"5001 nginx:1: pulling, 1 of 40 MB",
		"8001 nginx:1: pulling, 33 of 71 MB",
		"11001 nginx:1: pulling, 43 of 71 MB",
		"14001 nginx:1: pulling, 43 of 71 MB",
		"17001 nginx:1: pulling, 48 of 76 MB",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// elfHeader is the head of an executable, with one segment.
func elfHeader(m elf.Machine, abi elf.OSABI, segment elf.ProgType) string {
	h := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(m), Version: uint32(elf.EV_CURRENT), Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB)
	h.Ident[elf.EI_VERSION], h.Ident[elf.EI_OSABI] = byte(elf.EV_CURRENT), byte(abi)
	var b bytes.Buffer
	binary.Write(&b, binary.LittleEndian, h)
	binary.Write(&b, binary.LittleEndian, elf.Prog64{Type: uint32(segment)})
	return b.String()
}

func TestLinuxBinary(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for name, content := range map[string]string{
		"amd64": elfHeader(elf.EM_X86_64, elf.ELFOSABI_NONE, elf.PT_LOAD), "arm64": elfHeader(elf.EM_AARCH64, elf.ELFOSABI_LINUX, elf.PT_LOAD),
		"bsd": elfHeader(elf.EM_X86_64, elf.ELFOSABI_FREEBSD, elf.PT_LOAD), "dynamic": elfHeader(elf.EM_X86_64, elf.ELFOSABI_NONE, elf.PT_INTERP),
		"mac": "\xcf\xfa\xed\xfe\x0c\x00\x00\x01" + strings.Repeat("\x00", 64), "script": "#!/bin/sh\n", "empty": "", "torn": "\x7fELF\x02\x01",
	} {
		if err := os.WriteFile(at(name), []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct{ file, arch, want string }{
		{"amd64", "amd64", ""}, {"arm64", "arm64", ""},
		{"amd64", "arm64", "is for amd64"}, {"arm64", "amd64", "is for arm64"},
		{"mac", "arm64", "is not a Linux program"}, {"bsd", "amd64", "is not a Linux program"},
		{"script", "amd64", "is not a Linux program"}, {"empty", "amd64", "is not a Linux program"}, {"torn", "amd64", "is not a Linux program"},
		{"dynamic", "amd64", "is dynamically linked"}, {"none", "amd64", "cannot be read: no such file or directory"},
	} {
		err := static(at(tt.file), tt.arch)
		if got := fmt.Sprint(err); got != tt.want && (err != nil || tt.want != "") {
			t.Errorf("%s for %s: %s, want %s", tt.file, tt.arch, got, tt.want)
		}
	}
	choose := func(self, named, arch, want, wantErr string) {
		t.Helper()
		got, err := linuxBinary(self, named, arch)
		if wantErr == "" && (err != nil || got != want) || wantErr != "" && fmt.Sprint(err) != wantErr {
			t.Errorf("%s, %v", got, err)
		}
	}
	choose(at("amd64"), "", "amd64", at("amd64"), "")
	choose(at("mac"), at("arm64"), "arm64", at("arm64"), "")
	choose(at("amd64"), at("mac"), "amd64", "", "IDLERACE_LINUX_BINARY: "+at("mac")+" is not a Linux program")
	choose(at("mac"), "", "arm64", "", "containers need this program statically linked for linux/arm64: "+at("mac")+" is not a Linux program, and "+at("idlerace-linux-arm64")+" is not there; `make linux` builds it")
	if err := os.Rename(at("amd64"), at("idlerace-linux-arm64")); err != nil {
		t.Fatal(err)
	}
	choose(at("mac"), "", "arm64", "", "containers need this program statically linked for linux/arm64: "+at("mac")+" is not a Linux program, and "+at("idlerace-linux-arm64")+" is for amd64; `make linux` builds it")
	if err := os.Rename(at("arm64"), at("idlerace-linux-arm64")); err != nil {
		t.Fatal(err)
	}
	choose(at("mac"), "", "arm64", at("idlerace-linux-arm64"), "")
}

func TestOwn(t *testing.T) {
	e := engine(t)
	var said []string
	say := func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }
	image, err := e.Own(t.Context(), shared.binary, say)
	if err != nil || image != shared.image || len(said) > 0 {
		t.Errorf("%+v is not %+v: %v, %q", image, shared.image, err, said)
	}
	b, err := os.ReadFile(shared.binary)
	if err != nil {
		t.Fatal(err)
	}
	if hash := sha256.Sum256(b); image.Ref != "idlerace:"+hex.EncodeToString(hash[:])[:12] {
		t.Errorf("%s", image.Ref)
	}
	// Another content is another image.
	other := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(other, append(b, '\n'), 0o755); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	second, err := e.Own(t.Context(), other, say)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("packed in %s", time.Since(begun))
	if _, err := e.client.ImageRemove(t.Context(), second.ID, client.ImageRemoveOptions{}); err != nil {
		t.Error(err)
	}
	if again, err := e.Own(t.Context(), other, quietly); err != nil || again != second {
		t.Errorf("packed again it is %+v, %v", again, err)
	}
	defer e.client.ImageRemove(context.Background(), second.ID, client.ImageRemoveOptions{})
	if second.ID == image.ID || len(said) != 1 || said[0] != second.Ref+": packing "+other {
		t.Errorf("%+v, %q", second, said)
	}
	if _, err := e.Own(t.Context(), "/dev/null", say); err == nil || !strings.Contains(err.Error(), "`make linux`") {
		t.Errorf("%v", err)
	}
}

func TestOutput(t *testing.T) {
	e := engine(t)
	out, err := e.Output(t.Context(), shared.image, ownPath, "look", "/none")
	if err != nil || !strings.HasPrefix(string(out), "/idlerace.d <nil>\n/none ") {
		t.Errorf("%q, %v", out, err)
	}
	_, err = e.Output(t.Context(), shared.image, "nginx", "-v")
	if want := shared.image.Ref + `: nginx: does not start: exec: "nginx": executable file not found in $PATH`; err == nil || err.Error() != want {
		t.Errorf("%v", err)
	}
	_, err = e.Output(t.Context(), shared.image, ownPath, "talker", "2")
	if want := shared.image.Ref + ": /idlerace: exit status 3: out 0 out 1 err 0 err 1"; err == nil || len(err.Error()) != len(want) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 3*time.Second, errors.New("enough"))
	defer cancel()
	_, err = e.Output(ctx, shared.image, ownPath, "sleep")
	if err == nil || !strings.HasSuffix(err.Error(), ": enough") {
		t.Errorf("%v", err)
	}
	if left := ours(t.Context(), e, labelRun+"=output", labelPID+"="+strconv.Itoa(os.Getpid())); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

func TestSubstitute(t *testing.T) {
	for _, tt := range []struct{ ref, prefix, want string }{
		{"nginx:1", "", "nginx:1"},
		{"nginx:1", "registry.example/mirror", "registry.example/mirror/nginx:1"},
		{"envoyproxy/envoy:v1", "registry.example/mirror", "registry.example/mirror/envoyproxy/envoy:v1"},
		{"ghcr.io/a/b:1", "registry.example/mirror", "ghcr.io/a/b:1"},
		{"localhost:5000/a:1", "registry.example/mirror", "localhost:5000/a:1"},
		{"registry.example/nginx:1", "registry.example/mirror", "registry.example/nginx:1"},
	} {
		if got := (&Engine{prefix: tt.prefix}).substitute(tt.ref); got != tt.want {
			t.Errorf("%s with %q: %s, want %s", tt.ref, tt.prefix, got, tt.want)
		}
	}
}

// testcontainers substitutes again what it is given.
func TestPrefix(t *testing.T) {
	e := engine(t)
	out, err := playChild(t, "prefix", "TESTCONTAINERS_HUB_IMAGE_NAME_PREFIX=registry.example/mirror")
	if err != nil || out != "started\n" {
		t.Errorf("%s, %v", out, err)
	}
	if _, err := e.client.ImageRemove(t.Context(), "registry.example/mirror/"+shared.image.Ref, client.ImageRemoveOptions{}); err != nil {
		t.Error(err)
	}
}

func TestEnsureReaper(t *testing.T) {
	e := engine(t)
	if err := e.EnsureReaper(t.Context(), quietly); err != nil {
		t.Errorf("switched off or present: %v", err)
	}
	if e.Info().Reaper {
		// What follows is about its absence, which the rest of the suite cannot have.
		t.Skip("docker: Ryuk's image is present")
	}
	on := &Engine{client: e.client, provider: e.provider, info: e.info, silence: pullSilence}
	on.info.Reaper = true
	for what, err := range map[string]error{"ensured": on.EnsureReaper(t.Context(), quietly), "looked up": on.LookupReaper(t.Context())} {
		if err == nil || !strings.HasPrefix(err.Error(), "testcontainers/ryuk:") || !strings.Contains(err.Error(), "TESTCONTAINERS_RYUK_DISABLED=true") ||
			!strings.Contains(err.Error(), "`idlerace clean`") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", what, err)
		}
		t.Log(err)
	}
}
