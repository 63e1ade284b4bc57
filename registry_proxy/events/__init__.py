"""Events for the receivers of others: outbox, subscriptions, deliveries."""
