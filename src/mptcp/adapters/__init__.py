"""Well-known libraries over the stack in use: one small module each, imported only by those who have the library."""
