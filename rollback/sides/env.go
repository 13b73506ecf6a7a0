package sides

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
)

// Env is the boot loader's memory. It is one sector, which a disk writes whole
// or not at all, and which nobody but GRUB and the agent writes, in place.
type Env struct {
	Side string // what is started
	Try  string // what is started once instead; "": nothing
}

// EnvFile is the environment block in its file system; GRUB's save_env writes
// it as well as we do. The block's format is GRUB's (grub-core/lib/envblk.c): a
// signature, lines NAME=VALUE, and # up to the end.
const (
	EnvFile      = "ingot/env"
	envSize      = 512 // bytes
	envSignature = "# GRUB Environment Block\n"
	envSide      = "ingot_side"
	envTry       = "ingot_try"
)

// ErrEnv says that an environment block cannot be understood. The boot loader
// starts side a then.
var ErrEnv = errors.New("not an environment block of GRUB that names a side")

// Encode returns the block.
func (e Env) Encode() []byte {
	b := fmt.Appendf(nil, "%s%s=%s\n%s=%s\n", envSignature, envSide, e.Side, envTry, e.Try)
	return append(b, bytes.Repeat([]byte{'#'}, envSize-len(b))...)
}

// DecodeEnv reads a block. Other variables are passed over.
func DecodeEnv(b []byte) (Env, error) {
	var e Env
	text, ok := strings.CutPrefix(string(b), envSignature)
	if !ok || len(b) != envSize {
		return e, ErrEnv
	}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		switch name {
		case envSide:
			e.Side = value
		case envTry:
			e.Try = value
		}
	}
	if e.Side != A && e.Side != B || e.Try != "" && e.Try != A && e.Try != B {
		return e, ErrEnv
	}
	return e, nil
}

// ReadEnv reads the block of the file system that is mounted at dir.
func ReadEnv(dir string) (Env, error) {
	b, err := os.ReadFile(dir + "/" + EnvFile)
	if err != nil {
		return Env{}, err
	}
	e, err := DecodeEnv(b)
	if err != nil {
		return e, fmt.Errorf("%s: %w", EnvFile, err)
	}
	return e, nil
}

// WriteEnv writes the block in place, where it is, and returns when the disk has it.
func WriteEnv(dir string, e Env) error {
	b := e.Encode()
	if _, err := DecodeEnv(b); err != nil {
		return fmt.Errorf("%+v: %w", e, err)
	}
	f, err := os.OpenFile(dir+"/"+EnvFile, os.O_WRONLY|os.O_SYNC, 0)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil && st.Size() != envSize {
		err = fmt.Errorf("%s has %d bytes: %w", EnvFile, st.Size(), ErrEnv)
	}
	if err == nil {
		_, err = f.WriteAt(b, 0)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// NewEnv makes the block of a new node, allocated: GRUB can write nothing else.
func NewEnv(dir string, e Env) error {
	if err := os.MkdirAll(dir+"/ingot", 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(dir+"/"+EnvFile, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(e.Encode())
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
