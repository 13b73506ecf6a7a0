// Package installer runs on the node: it claims the profile, writes disks, tree and boot loader, and reports.
package installer

import (
	"ingot/internal/digest"
)

// Job is everything that a node needs to know to install itself; the server
// renders it when the node claims its profile. It travels as JSON.
type Job struct {
	Node     string   `json:"node"`
	HostName string   `json:"hostname"`
	Attempt  int      `json:"attempt"`
	Classes  []string `json:"classes"`

	Ref   string    `json:"ref"`   // the image as the operator named it
	Image digest.ID `json:"image"` // of its manifest

	DiskConfig DiskConfig        `json:"disk_config"`
	KernelArgs []string          `json:"kernel_args"`
	Vars       map[string]string `json:"vars,omitempty"`
	NodeOwned  []string          `json:"node_owned,omitempty"`

	// Overlay is the encoded manifest of the files of classes and templates;
	// Data holds their chunks.
	Overlay []byte               `json:"overlay"`
	Data    map[digest.ID][]byte `json:"data"`

	Scripts      []Script  `json:"scripts,omitempty"`
	HostKeys     []HostKey `json:"host_keys,omitempty"` // none: those of the image stay
	OperatorKeys []string  `json:"operator_keys"`       // authorized_keys lines of root
	By           string    `json:"by"`

	Sides  *Sides `json:"sides,omitempty"` // nil: one root file system
	Loader string `json:"loader"`          // grub, systemd-boot, or none: the image boots by its own means
	Finish string `json:"finish"`          // reboot or poweroff
}

// DiskConfig is the disk_config file that the classes of the node select.
type DiskConfig struct {
	Class string `json:"class"`
	File  string `json:"file"` // for messages
	Text  string `json:"text"`
}

// Sides says which mount points of the disk_config are the parts of a node with
// two root file systems (package sides), and what these share.
type Sides struct {
	Mode   string   `json:"mode"`             // slots, or btrfs: subvolumes of /, without mount points
	Other  string   `json:"other,omitempty"`  // the second root
	Shared string   `json:"shared,omitempty"` // what both have
	Env    string   `json:"env"`              // of the boot loader's environment
	Trees  []string `json:"trees"`
	Own    []string `json:"own,omitempty"`
}

// Script is one program of the config space that runs on the installed tree.
type Script struct {
	Class   string `json:"class"`
	Name    string `json:"name"` // scripts/CLASS/NN-name
	Content []byte `json:"content"`
}

// HostKey is an SSH host key pair in OpenSSH's formats.
type HostKey struct {
	Type    string `json:"type"`
	Private string `json:"private"`
	Public  string `json:"public"`
}

// Claim is what an installer sends first.
type Claim struct {
	Node   string            `json:"node"`
	Nonce  string            `json:"nonce"`  // of the boot attempt, from the kernel's command line
	Client string            `json:"client"` // random, chosen when the installer started
	Facts  map[string]string `json:"facts"`  // what the machine says of itself
}

// Claimed is the server's answer to a Claim.
type Claimed struct {
	Token string `json:"token"` // session; goes into the Authorization header
	Job   Job    `json:"job"`
}

// Progress is how far an installation has come.
type Progress struct {
	Task    string `json:"task"`
	Detail  string `json:"detail,omitempty"`
	Done    int64  `json:"done"`
	Total   int64  `json:"total"` // bytes; 0: unknown
	Rate    int64  `json:"rate"`  // bytes a second; 0: unknown
	Writing bool   `json:"writing"`
}

// Ending is the last report of an installation. Reason is empty when it went well.
type Ending struct {
	Reason string `json:"reason"`
	Log    string `json:"log"`
	// Overlay is the digest of the overlay's manifest, Manifest that of the tree as installed.
	Overlay  string   `json:"overlay,omitempty"`
	Manifest string   `json:"manifest,omitempty"`
	Classes  []string `json:"classes,omitempty"` // the full list, as the node found it
	// Seconds that each task took, in order.
	Tasks []TaskTime `json:"tasks,omitempty"`
}

// TaskTime is how long one task of an installation took.
type TaskTime struct {
	Task    string  `json:"task"`
	Seconds float64 `json:"seconds"`
}

// The HTTP interface between an installer and the server (docs/BOOT.md).
const (
	PathClaim    = "/v1/claim"
	PathProgress = "/v1/progress"
	PathEnd      = "/v1/end"
	PathArmed    = "/v1/armed"
	PathManifest = "/v1/image/manifest"
	PathIndex    = "/v1/image/index"
	PathPack     = "/v1/pack/" // + digest
)
