"""One file an op: formula, torch reference, Triton where it pays, autograd, public function."""
