"""Floor 2, engine: runs guest instructions; the only floor that knows Unicorn and Capstone."""
