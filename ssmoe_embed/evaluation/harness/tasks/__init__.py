"""Tasks of lm-evaluation-harness that need no network; the harness finds the YAML files by `--include_path` too."""
