"""What an application imports: `from truing.client import Client`. Everything behind it stands in `truing.infra.client`."""

from truing.infra.client import Answer, Client, Declined, Receipt, Word, correction, interaction, rating

__all__ = ["Answer", "Client", "Declined", "Receipt", "Word", "correction", "interaction", "rating"]
