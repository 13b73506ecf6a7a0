package netboot

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
)

// The files of a result, in Out/KEY.
const (
	kernelFile = "vmlinuz"
	initrdFile = "initrd"
	recordFile = "build.json" // the Result
)

// keep returns the result of that key from out, or compresses and writes it.
func keep(ctx context.Context, out string, res *Result, vmlinuz []byte, l layout) (*Result, error) {
	dir := filepath.Join(out, res.Key.String())
	if old, ok := load(dir); ok {
		return old, nil
	}
	tmp, err := os.MkdirTemp(out, ".build-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	if err := res.write(ctx, tmp, vmlinuz, l); err != nil {
		return nil, err
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return nil, err
	}
	if err := replaceDir(tmp, dir); err != nil {
		return nil, err
	}
	res.place(dir)
	return res, nil
}

// place fills in the paths.
func (r *Result) place(dir string) {
	r.Kernel, r.Initrd = filepath.Join(dir, kernelFile), filepath.Join(dir, initrdFile)
}

// load returns the result in dir when both of its files are what was written.
func load(dir string) (*Result, bool) {
	b, err := os.ReadFile(filepath.Join(dir, recordFile))
	if err != nil {
		return nil, false
	}
	res := &Result{}
	if json.Unmarshal(b, res) != nil {
		return nil, false
	}
	res.place(dir)
	k, kerr := fileDigest(res.Kernel)
	i, ierr := fileDigest(res.Initrd)
	if kerr != nil || ierr != nil || k != res.KernelDigest || i != res.InitrdDigest {
		return nil, false // damaged: build it again
	}
	res.Cached = true
	return res, true
}

// replaceDir moves tmp to dir; a damaged dir is removed, an equal one of somebody faster is left.
func replaceDir(tmp, dir string) error {
	err := os.Rename(tmp, dir)
	if errors.Is(err, fs.ErrExist) {
		if _, ok := load(dir); ok {
			return nil
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		err = os.Rename(tmp, dir)
	}
	if err != nil {
		return err
	}
	return syncFile(filepath.Dir(dir))
}

// write writes the files of a result to dir, durably.
func (r *Result) write(ctx context.Context, dir string, vmlinuz []byte, l layout) error {
	if err := writeFile(filepath.Join(dir, kernelFile), func(w io.Writer) error {
		_, err := w.Write(vmlinuz)
		return err
	}); err != nil {
		return err
	}
	initrd := filepath.Join(dir, initrdFile)
	if err := writeFile(initrd, func(w io.Writer) (err error) {
		r.UnpackedBytes, err = compress(ctx, w, l)
		return err
	}); err != nil {
		return fmt.Errorf("write initramfs: %w", err)
	}
	fi, err := os.Stat(initrd)
	if err != nil {
		return err
	}
	r.InitrdBytes = fi.Size()
	if r.InitrdDigest, err = fileDigest(initrd); err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, recordFile), func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(r)
	})
}

// compress writes the tree as cpio in one zstd frame. The kernel takes windows of up to 128 MB
// (lib/decompress_unzstd.c); 8 MB are what level 3 has. No checksum: the node verifies the digest.
func compress(ctx context.Context, w io.Writer, l layout) (int64, error) {
	enc, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(2), zstd.WithEncoderCRC(false))
	if err != nil {
		return 0, err
	}
	n, err := l.writeTo(ctxWriter{ctx, enc})
	return n, errors.Join(err, enc.Close())
}

// ctxWriter stops writing when ctx ends.
type ctxWriter struct {
	ctx context.Context
	w   io.Writer
}

func (c ctxWriter) Write(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.w.Write(p)
}

// writeFile writes and syncs a new file.
func writeFile(name string, fill func(io.Writer) error) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	if err := fill(w); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return f.Close()
}

// syncFile syncs a file or directory.
func syncFile(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
