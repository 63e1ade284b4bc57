"""A caching, permission-checking, failing-over proxy in front of Docker and OCI registries.

The rooms of the house, from the foundation up; imports point down only (tests/test_layers.py)::

    protocol                     the texts of the specifications as values; standard library only
    ports, files, http, config   agreements between rooms; safe files; HTTP/1.1 of both listeners; settings
    tasks                        background work: started, awaited, ended
    access, directory            decisions about rights; their records, as administrators change them
    cache, spool                 bytes on the local disk; uploads on their way to the replicas
    replica, upstream            one replica over HTTP; replicas, reading: routing, health, failover
    store                        state: SQLite or Redis
    audit, telemetry             the tamper-evident log; metrics and logs
    events                       outbox, subscriptions and deliveries
    operations                   the verbs: pull, push, discover, manage
    history                      moves of tags: what each was, and the ways back
    rules                        rules of images: judged when a tag is moved or deleted
    replication, repair          replicas, writing: fan-out, journal, marks; replicas made equal
    api                          the forms of the JSON API: bodies, documents, endpoints, problems
    admission                    the way into the admin API: names, pages, logins, turns
    edge, admin, upkeep          the public listener; the admin listener, a file for each resource, as in cli
    node                         processes, workers, sockets
    configured                   settings as the rooms' values; faults of a start in words
    app, load                    composition of a worker; its late loading
    offline, cli, terminal       work without the service; the commands; the admin client and output that they share

The path of a pull::

    edge/public -> edge/registry -> protocol/endpoints -> edge/authenticate -> access/{control,policy}, upstream/routing
        -> edge/reads -> operations/{pull,pull_blobs} -> cache/{holdings,disk,fill} -> upstream/{failover,selection}
        -> replica/client -> edge/send

edge/fast_path takes the place of edge/{public,send} for a plain request whose answer is at hand.

The path of a push::

    edge/registry -> edge/writes -> operations/push -> spool -> replication/{sessions,upload_stream,uploads} (a blob)
        or operations/manifests -> rules/judge, replication/{manifests,journal,fanout} (a manifest) -> replica/client

The path of a grant::

    cli/grants -> admission/auth -> admin/grants -> access/grant -> directory/grants -> store;
        then, in each worker, access/{control,snapshot}

docs/reference/paths.md follows a grant, a manifest and a blob step by step; docs/reference/glossary.md has our words.
"""
