"""A stand-in for Stripe, for machines that can't or mustn't reach the real one.

A process of its own (`python -m marketplace.devstack.stripe_stand_in`), standard library only,
sharing no code with the site: it speaks Stripe's HTTP, so that everything on our side of it is
what runs in production. It keeps JSON documents in SQLite, writes a balance transaction for
every movement of money, signs and repeats webhooks, replays idempotent requests and refuses
parameters that Stripe doesn't know. A test walks the SDK's own types over what it answers.

Left out, and refused rather than ignored: manual capture, 3-D Secure, saved cards,
subscriptions, application fees, other currencies within one balance. Payouts are made only
when asked for, whatever an account's schedule says.
"""
