"""Where run state is kept: one interface (`base`), a package for each tracker; `loader` finds the tracker for an address."""
