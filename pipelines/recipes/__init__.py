"""Recipes: one module per job; a recipe is a function that returns the whole, frozen configuration of a run."""
