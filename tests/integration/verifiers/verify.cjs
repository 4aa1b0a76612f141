// The npm reference library. Exit code 0: verified, 1: refused, anything else: broken.
const { Webhook, WebhookVerificationError } = require("standardwebhooks");
const { SECRET, ID, TIMESTAMP, SIGNATURE } = process.env;
const body = require("fs").readFileSync(0, "utf8");
const headers = { "webhook-id": ID, "webhook-timestamp": TIMESTAMP, "webhook-signature": SIGNATURE };
try {
  new Webhook(SECRET).verify(body, headers);
} catch (error) {
  process.exit(error instanceof WebhookVerificationError ? 1 : 2);
}
