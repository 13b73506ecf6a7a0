package modload

import "fmt"

// step is one module of a plan.
type step struct {
	mod   *Module
	after []string // modules that are to be tried before
	hard  []string // those of after without which mod does not link
}

// table is an index made ready for lookups.
type table struct {
	mods    map[string]*Module
	builtin map[string]bool
}

func newTable(x *Index) table {
	t := table{mods: make(map[string]*Module, len(x.Modules)), builtin: make(map[string]bool, len(x.Builtin))}
	for i := range x.Modules {
		t.mods[x.Modules[i].Name] = &x.Modules[i]
	}
	for _, name := range x.Builtin {
		t.builtin[name] = true
	}
	return t
}

// plan orders the modules that names need. Soft dependencies have cycles (crc32c and libcrc32c have
// had one): a module waits only for those that stand before it in the order.
func (t table) plan(names ...string) ([]step, error) {
	p := planner{table: t, seen: make(map[string]bool), done: make(map[string]bool)}
	for _, name := range names {
		if err := p.add(Normal(name)); err != nil {
			return nil, err
		}
	}
	return p.steps, nil
}

type planner struct {
	table
	seen  map[string]bool // being planned, or planned
	done  map[string]bool // in steps
	steps []step
}

// add plans name after what it needs.
func (p *planner) add(name string) error {
	if p.seen[name] || p.builtin[name] {
		return nil
	}
	mod, ok := p.mods[name]
	if !ok {
		return fmt.Errorf("kernel module %q: %w", name, ErrMissing)
	}
	p.seen[name] = true
	for _, dep := range mod.Depends {
		if err := p.add(dep); err != nil {
			return fmt.Errorf("kernel module %q needs: %w", name, err)
		}
	}
	p.soft(mod.Pre)
	p.emit(mod)
	p.soft(mod.Post)
	return nil
}

// soft plans what is there; a soft dependency that is not there is no fault, and one that cannot be
// linked before the module that wants it is left out.
func (p *planner) soft(names []string) {
	for _, name := range names {
		if !p.stuck(name, map[string]bool{}) {
			_ = p.add(name) // ErrMissing is what soft means
		}
	}
}

// stuck reports whether name does not link without a module that is still being planned; trail holds
// the names that were asked for already.
func (p *planner) stuck(name string, trail map[string]bool) bool {
	mod, ok := p.mods[name]
	if !ok || p.done[name] || trail[name] {
		return false
	}
	trail[name] = true
	for _, dep := range mod.Depends {
		if p.seen[dep] && !p.done[dep] || p.stuck(dep, trail) {
			return true
		}
	}
	return false
}

// emit appends mod to the order.
func (p *planner) emit(mod *Module) {
	s := step{mod: mod}
	for _, dep := range mod.Depends {
		if p.done[dep] {
			s.hard = append(s.hard, dep)
		}
	}
	s.after = append(s.after, s.hard...)
	for _, dep := range mod.Pre {
		if p.done[dep] {
			s.after = append(s.after, dep)
		}
	}
	p.done[mod.Name] = true
	p.steps = append(p.steps, s)
}
