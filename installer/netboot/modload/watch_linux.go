package modload

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"ingot/internal/slogx"
)

// Watch loads the modules of devices that appear after Auto, until ctx ends: a disk behind a SCSI or USB
// host shows up seconds after its host's driver. It hears of them by the kernel's uevents (netlink, lib/kobject_uevent.c),
// and looks at /sys once at the start for those that came between Auto and Watch.
func (l *Loader) Watch(ctx context.Context) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return fmt.Errorf("watch for devices: %w", err)
	}
	defer unix.Close(fd)
	tv := unix.NsecToTimeval(int64(200 * time.Millisecond)) // how long the end of ctx may go unseen
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return fmt.Errorf("watch for devices: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		return fmt.Errorf("watch for devices: %w", err)
	}
	if _, err := l.Auto(ctx); err != nil {
		slogx.Or(l.Log).Warn("load kernel modules", slogx.Err, err)
	}
	return l.watch(ctx, fd)
}

func (l *Loader) watch(ctx context.Context, fd int) error {
	buf := make([]byte, 64<<10)
	for ctx.Err() == nil {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		switch {
		case errors.Is(err, unix.ENOBUFS): // events were lost: /sys knows
			_, err = l.Auto(ctx)
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("watch for devices: %w", err)
		default:
			_, err = l.devices(ctx, l.unseen(modaliasOf(buf[:n])))
		}
		if err != nil {
			slogx.Or(l.Log).Warn("load kernel modules", slogx.Err, err)
		}
	}
	return nil
}

// modaliasOf returns the MODALIAS of a uevent that adds a device: "add@/devices/...\0ACTION=add\0MODALIAS=...".
func modaliasOf(event []byte) []string {
	if !bytes.HasPrefix(event, []byte("add@")) {
		return nil
	}
	for _, field := range bytes.Split(event, []byte{0}) {
		if v, ok := bytes.CutPrefix(field, []byte("MODALIAS=")); ok {
			return []string{string(v)}
		}
	}
	return nil
}
