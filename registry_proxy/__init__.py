"""A caching, permission-checking, failing-over proxy in front of Docker and OCI registries.

The rooms of the house, from the foundation up; imports point down only (tests/test_layers.py)::

    protocol                     the texts of the specifications as values; standard library only
    ports, files, http, config   agreements between rooms; safe files; HTTP/1.1 of both listeners; settings
    access, directory            may this subject do that? its records, as administrators change them
    cache, spool                 bytes on the local disk; uploads on their way to the replicas
    replica, upstream            one replica over HTTP; replicas, reading: routing, health, failover
    store                        state: SQLite or Redis
    audit, telemetry             the tamper-evident log; metrics and logs
    operations                   the verbs: pull, push, discover, manage
    replication, repair          replicas, writing: fan-out, journal, marks; replicas made equal
    api                          the forms of the JSON API: bodies, documents, endpoints, problems
    edge, admin                  the public listener, the admin listener (admin and cli: a file for each resource)
    node                         processes, workers, sockets
    configured, app, load        settings as the rooms' values; composition of a worker; its late loading
    offline, cli                 work without the service; the command line

The path of a pull::

    edge/public -> edge/registry -> protocol/endpoints -> edge/authenticate -> access/{required,policy} -> edge/reads
        -> operations/{pull,pull_blobs} -> cache/{disk,fill} -> upstream/{routing,selection,failover}
        -> replica/client -> edge/send

(a plain request that nobody has to be asked for is read and written by edge/fast_path in place of edge/{public,send}),
that of a push::

    edge/registry -> edge/writes -> operations/push -> spool -> replication/{sessions,fanout,journal}
        -> replica/client

and that of a grant::

    cli/grants -> admin/{auth,grants} -> access/grant -> directory/grants -> store;
        then, in each worker, access/{control,snapshot}
"""
