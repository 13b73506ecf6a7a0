// Package images tests images at rest with the built programs: another reader
// restores them, bytes of the store are flipped, programs are killed at every
// step, and hostile images are offered.
package images
