// Package steps runs a program and makes one of its system calls fail, or the
// last that it makes: tests break a program at every step in turn, over all of
// its threads, which strace counts one by one.
package steps
