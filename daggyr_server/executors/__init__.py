"""How attempts are carried out: one interface (`base`), one file an executor, found by name through entry points."""
