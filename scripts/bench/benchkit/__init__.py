"""What the benchmarks in scripts/bench share: networks, contenders, clocks, results."""
