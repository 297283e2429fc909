"""Where run state is kept: one interface (`base`), one file a tracker, found by scheme through entry points."""
