"""The load generator's process with all systems: `awesomeconnect.bench.generator`, started by deliveries.py."""

from awesomeconnect.bench.generator import main
from awesomeconnect.bench.relay_client import RelayClient

from .clients import NatsClient

if __name__ == "__main__":
    main({"relay": RelayClient, "nats": NatsClient})
