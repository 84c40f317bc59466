"""The models that NP-DRAW is measured against, in the same loop, data and likelihoods."""
