"""How a plan is carried out on a model object; one module a backend."""
