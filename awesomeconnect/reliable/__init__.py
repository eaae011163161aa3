"""Reliable mode between endpoints, without I/O: protocol-spec/reliable.md.

segments   bytes <-> payloads of contents 1 and 2
settings   bounds and patience
sender     what one stream has sent and not settled
receiver   what one stream has brought: order, duplicates, acknowledgements
ring       what was published to a room lately, for those who missed it
repair     what one stream of a room has brought: order, holes, gaps
unicast    all unicast streams of a node
rooms      all its streams in rooms
agenda     who has to be looked at when
outgoing   what is handed to the connection
stores     hooks for what outlives a process
endpoint   all streams of a node: what to send now, and when to look again

Time is an argument, in milliseconds of a clock that never jumps; randomness is injected. Nothing here knows
connections, tasks or the event loop: `awesomeconnect.client.reliable` drives it.
"""
