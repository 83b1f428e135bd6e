"""Tests: laws that every method and site obeys, on tiny random models and on the trained ones."""
