"""The manifests, the chart, the admission policy and the image, without a cluster."""
