"""The settings of the suite: the product's own, far from anybody's real services.

No test can reach a developer's database, broker or Stripe: every address is set here, to where
nobody listens, until a fixture (tests/conftest.py) starts the real thing.
"""

import os

NOBODY = "127.0.0.1:9"

for _name in [
    name for name in os.environ if name.startswith(("POLICY_", "STRIPE_", "S3_", "THROTTLE_"))
]:
    del os.environ[_name]
_told = {
    "DEBUG": "true",
    "SECRET_KEY": "a-secret-of-the-tests",
    "SITE_URL": "http://testserver",
    "AGENTS_URL": "http://testserver",
    "ALLOWED_HOSTS": "testserver,localhost,127.0.0.1",
    "DATABASE_URL": f"postgresql://market:nobody@{NOBODY}/market",
    "REDIS_URL": f"redis://:nobody@{NOBODY}/0",
    "S3_ENDPOINT_URL": f"http://{NOBODY}",
    "S3_SECRET_KEY": "a-secret-of-the-tests",
    "STRIPE_SECRET_KEY": "sk_test_of_the_tests",
    "STRIPE_WEBHOOK_SECRET": "whsec_of_the_tests",
    "STRIPE_API_BASE": f"http://{NOBODY}",
    "LOG_LEVEL": "WARNING",
}
os.environ.pop("MARKET_SIGNING_KEY", None)
os.environ.update(_told)

from marketplace.settings import *  # noqa: E402, F403

# What a test starts is told by the test, and inherits nothing of this.
for _name in _told:
    del os.environ[_name]

# Figures of tests are the market's prices; tests of the premium set it.
POLICY = POLICY.overridden({"premium_bps": "0"})  # noqa: F405

# Hashing a password slowly is for attackers.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
