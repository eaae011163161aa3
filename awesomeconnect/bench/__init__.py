"""The load generator: what is asked of a server, the loop that asks it, and what it finds.

    workloads      what is sent, in numbers
    load           the loop over the connections of one room, and what it needs of a connection to any system
    rtt            round trips
    connections    handshakes, and idle connections
    histogram      latencies
    relay_client   the relay's connections: the wire modules on a socket, without the client library
    generator      all that as a process of its own
    processes      starting one, and a relay for it; what a process costs
    measure        one measurement: a generator, and what the server uses meanwhile
    results        the figures that follow

It knows neither trio nor the server: it is as cheap as can be, so that the server is the bottleneck. The command
`awesomeconnect bench` measures the relay with it; ``tests/benchmarks`` adds other systems.
"""
