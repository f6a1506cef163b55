package docker

import (
	"archive/tar"
	"cmp"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/client"
)

// ownVar names the program that goes into our own image.
const ownVar = "IDLERACE_LINUX_BINARY"

// packTimeout is for some tens of MB on a busy machine.
const packTimeout = 2 * time.Minute

// ownPath is where that image has it.
const ownPath = "/idlerace"

// Own gives the image that holds nothing but this program, whose path is self,
// and makes it once per content. It needs neither a registry nor a compiler.
// Where self is not a static Linux program for the engine, such a one is taken
// that stands beside it as idlerace-linux-<arch>, or that IDLERACE_LINUX_BINARY
// names.
func (e *Engine) Own(ctx context.Context, self string, say func(format string, args ...any)) (Image, error) {
	binary, err := LinuxBinary(self, e.info.Arch)
	if err != nil {
		return Image{}, err
	}
	return e.pack(ctx, binary, say)
}

// pack gives the image of a program.
func (e *Engine) pack(ctx context.Context, binary string, say func(format string, args ...any)) (Image, error) {
	f, err := os.Open(binary)
	if err != nil {
		return Image{}, err
	}
	defer f.Close()
	hash := sha256.New()
	size, err := io.Copy(hash, f)
	if err != nil {
		return Image{}, err
	}
	ref := "idlerace:" + hex.EncodeToString(hash.Sum(nil))[:12]
	image, err := e.present(ctx, ref)
	if _, absent := errors.AsType[*AbsentError](err); !absent {
		return image, err
	}
	say("%s: packing %s", ref, binary)
	ctx, cancel := context.WithTimeout(ctx, packTimeout)
	defer cancel()
	r, w := io.Pipe()
	written := make(chan struct{})
	go func() {
		defer close(written)
		w.CloseWithError(archive(w, f, size, e.info.Arch, e.substitute(ref)))
	}()
	err = e.load(ctx, r)
	r.Close()
	<-written
	if err != nil {
		return Image{}, fmt.Errorf("%s: %s", ref, oneLine(err))
	}
	return e.present(ctx, ref)
}

// archive writes an image as `docker save` does. That needs no builder, and its
// id depends on the content alone: two runs that pack at the same time make one
// image.
func archive(w io.Writer, binary io.ReadSeeker, size int64, arch, ref string) error {
	layer := func(w io.Writer) error {
		if _, err := binary.Seek(0, io.SeekStart); err != nil {
			return err
		}
		t := tar.NewWriter(w)
		err := t.WriteHeader(&tar.Header{Name: ownPath[1:], Mode: 0o755, Size: size})
		if err == nil {
			_, err = io.Copy(t, binary)
		}
		return errors.Join(err, t.Close())
	}
	hash, length := sha256.New(), counter(0)
	if err := layer(io.MultiWriter(hash, &length)); err != nil {
		return err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": arch, "os": "linux", "created": time.Unix(0, 0).UTC(),
		"config": map[string]any{"Entrypoint": []string{ownPath}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(hash.Sum(nil))}},
	})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal([]any{map[string]any{"Config": "config.json", "RepoTags": []string{ref}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return err
	}
	t := tar.NewWriter(w)
	for _, part := range []struct {
		name  string
		size  int64
		write func(io.Writer) error
	}{
		{"layer.tar", int64(length), layer},
		{"config.json", int64(len(config)), func(w io.Writer) error { _, err := w.Write(config); return err }},
		{"manifest.json", int64(len(manifest)), func(w io.Writer) error { _, err := w.Write(manifest); return err }},
	} {
		if err := t.WriteHeader(&tar.Header{Name: part.name, Mode: 0o644, Size: part.size}); err != nil {
			return err
		}
		if err := part.write(t); err != nil {
			return err
		}
	}
	return t.Close()
}

// counter counts what is written to it, in bytes.
type counter int64

func (c *counter) Write(b []byte) (int, error) {
	*c += counter(len(b))
	return len(b), nil
}

func (e *Engine) load(ctx context.Context, image io.Reader) error {
	body, err := e.client.ImageLoad(ctx, image, client.ImageLoadWithQuiet(true))
	if err != nil {
		return err
	}
	defer body.Close()
	for messages := json.NewDecoder(body); ; {
		var m jsonstream.Message
		switch err := messages.Decode(&m); {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		case m.Error != nil:
			return m.Error
		}
	}
}

// LinuxBinary chooses the program that goes into an image for linux/arch, a
// GOARCH: see Engine.Own.
func LinuxBinary(self, arch string) (string, error) {
	return linuxBinary(self, os.Getenv(ownVar), arch)
}

func linuxBinary(self, named, arch string) (string, error) {
	if named != "" {
		if err := static(named, arch); err != nil {
			return "", fmt.Errorf("%s: %s %w", ownVar, named, err)
		}
		return named, nil
	}
	err := static(self, arch)
	if err == nil {
		return self, nil
	}
	beside := filepath.Join(filepath.Dir(self), "idlerace-linux-"+arch)
	besideErr := static(beside, arch)
	if besideErr == nil {
		return beside, nil
	}
	if errors.Is(besideErr, fs.ErrNotExist) {
		besideErr = errors.New("is not there")
	}
	return "", fmt.Errorf("containers need this program statically linked for linux/%s: %s %w, and %s %w; `make linux` builds it", arch, self, err, beside, besideErr)
}

var machines = map[elf.Machine]string{
	elf.EM_X86_64: "amd64", elf.EM_AARCH64: "arm64", elf.EM_386: "386", elf.EM_ARM: "arm",
	elf.EM_RISCV: "riscv64", elf.EM_S390: "s390x", elf.EM_PPC64: "ppc64le", elf.EM_LOONGARCH: "loong64",
}

// static says why a file is no static Linux program for arch, a GOARCH; the
// error continues a sentence that begins with the file's name.
func static(path, arch string) error {
	f, err := elf.Open(path)
	if _, odd := errors.AsType[*elf.FormatError](err); odd || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("is not a Linux program")
	}
	if err != nil {
		if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
			err = pathErr.Err
		}
		return fmt.Errorf("cannot be read: %w", err)
	}
	defer f.Close()
	if got := machines[f.Machine]; got != arch {
		return fmt.Errorf("is for %s", cmp.Or(got, f.Machine.String()))
	}
	if f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN || f.OSABI != elf.ELFOSABI_NONE && f.OSABI != elf.ELFOSABI_LINUX {
		return errors.New("is not a Linux program")
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return errors.New("is dynamically linked")
		}
	}
	return nil
}
