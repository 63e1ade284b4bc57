"""A caching, permission-checking, failing-over proxy in front of Docker and OCI registries.

The path of a pull is the map of this package::

    web/registry -> spec/endpoints -> web/authenticate -> access/{required,grants} -> proxy/pull
        -> cache/{disk,fill} -> upstream/{routing,selection,failover,client} -> web/stream

(a hit by digest that is small and plain goes web/server -> web/hot, by the same steps),

and that of a push::

    web/registry -> proxy/push -> cache/spool -> replication/{sessions,fanout,journal} -> upstream/client
"""
