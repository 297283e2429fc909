"""The parts of the soak (../soak.py): what runs, what breaks, what people ask meanwhile, and what must be true in the end."""
