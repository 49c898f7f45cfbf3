"""The node itself, and the images on it: what all other tests of this folder stand on."""


def test_the_node_is_ready(node):
    print(node.control_plane.kubectl("get", "nodes", "-o", "wide"))
    print(node.control_plane.kubectl("get", "pods,services,endpointslices", "-A"))
