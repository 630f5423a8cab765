"""A study on a Kubernetes cluster: profile + plan -> RayJob (pure), then a thin client. Neither torch nor ray."""
