package sides

import "fmt"

// Boot loaders that can try a side once.
const (
	GRUB        = "grub"         // the environment block says what it starts; "" is GRUB, too
	SystemdBoot = "systemd-boot" // the entries on the EFI system partition do, and it counts tries in their names
)

// ReadEnv reads what the boot loader starts. The file system of its memory is
// mounted at dir.
func (c *Config) ReadEnv(dir string) (Env, error) {
	if c.Loader == SystemdBoot {
		return readEntries(dir)
	}
	return ReadEnv(dir)
}

// WriteEnv tells the boot loader what to start, durably. A side that is to be
// tried has been placed before.
func (c *Config) WriteEnv(dir string, e Env) error {
	if c.Loader == SystemdBoot {
		return c.writeEntries(dir, e)
	}
	return WriteEnv(dir, e)
}

// Place puts the kernel of the side whose top is top where the boot loader finds
// it. GRUB reads it from the side itself.
func (c *Config) Place(dir, side, top string) error {
	if c.Loader != SystemdBoot {
		return nil
	}
	if err := placeKernel(dir, side, top); err != nil {
		return fmt.Errorf("put the kernel of side %s onto the EFI system partition: %w", side, err)
	}
	return nil
}
