// Package e2e tests ingot from outside: the program that is built, against nodes made of namespaces that run a real sshd.
package e2e
