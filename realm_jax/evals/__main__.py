"""`python -m realm_jax.evals`: the command line of lm-evaluation-harness, with the model `realm`."""

from realm_jax.evals.harness import main

if __name__ == "__main__":
    main()
