"""Who may score: checks of keys and tokens. No I/O, no clock; secrets never leave through an error or a repr."""
