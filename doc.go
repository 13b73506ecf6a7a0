// Package ingot is the root of the module; it holds no code but the rules that the tree obeys (rules_test.go).
package ingot
