"""The edge to the kubelet: its device-plugin and pod-resources sockets. Only this package knows gRPC and protobuf."""
