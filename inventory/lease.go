package inventory

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Lease is one address given to one client; the address is its key.
type Lease struct {
	MAC      string // as net.HardwareAddr prints it
	IP       netip.Addr
	State    string
	HostName string
	Iface    string
	Expires  time.Time // to the second
}

// Leases returns all leases, expired ones too.
func (d *DB) Leases(ctx context.Context) ([]Lease, error) { return d.leases(ctx, ``) }

// LeasesOf returns the leases of some clients, expired ones too.
func (d *DB) LeasesOf(ctx context.Context, macs ...string) ([]Lease, error) {
	if len(macs) == 0 {
		return nil, nil
	}
	args := make([]any, len(macs))
	for i, m := range macs {
		args[i] = m
	}
	return d.leases(ctx, `WHERE mac IN (?`+strings.Repeat(`,?`, len(macs)-1)+`)`, args...)
}

func (d *DB) leases(ctx context.Context, which string, args ...any) ([]Lease, error) {
	rows, err := d.db.QueryContext(ctx, `SELECT mac, ip, state, hostname, iface, expires FROM leases `+which+` ORDER BY ip`, args...)
	if err != nil {
		return nil, fmt.Errorf("read leases: %w", err)
	}
	defer rows.Close()
	var out []Lease
	for rows.Next() {
		var l Lease
		var ip string
		var exp int64
		if err := rows.Scan(&l.MAC, &ip, &l.State, &l.HostName, &l.Iface, &exp); err != nil {
			return nil, fmt.Errorf("read leases: %w", err)
		}
		if l.IP, err = netip.ParseAddr(ip); err != nil {
			return nil, fmt.Errorf("read lease of %s: %w", l.MAC, err)
		}
		l.Expires = time.Unix(exp, 0)
		out = append(out, l)
	}
	return out, rows.Err()
}

// SaveLease stores l; when it returns, the lease survives a power cut.
func (d *DB) SaveLease(ctx context.Context, l Lease) error {
	_, err := d.db.ExecContext(ctx, `INSERT INTO leases (mac, ip, state, hostname, iface, expires) VALUES (?,?,?,?,?,?)
		ON CONFLICT (ip) DO UPDATE SET mac=excluded.mac, state=excluded.state, hostname=excluded.hostname, iface=excluded.iface, expires=excluded.expires`,
		l.MAC, l.IP.String(), l.State, l.HostName, l.Iface, l.Expires.Unix())
	if err != nil {
		return fmt.Errorf("save lease of %s: %w", l.MAC, err)
	}
	return nil
}

// DeleteLease forgets the lease of ip, if there is one.
func (d *DB) DeleteLease(ctx context.Context, ip netip.Addr) error {
	if _, err := d.db.ExecContext(ctx, `DELETE FROM leases WHERE ip=?`, ip.String()); err != nil {
		return fmt.Errorf("delete lease of %s: %w", ip, err)
	}
	return nil
}
