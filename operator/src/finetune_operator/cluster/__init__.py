"""I/O with the API server and the pods: client, informer, store, work queue, leader election."""
