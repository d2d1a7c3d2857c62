"""What the tests share: builders, fakes, a virtual clock, a model of a node."""
