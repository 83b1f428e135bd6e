"""The only code that touches a model: anatomy, clock, and the hooks of each site."""
