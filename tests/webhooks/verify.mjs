// Verifies a webhook by the reference library of JavaScript. See verify.py.
import { readFileSync } from 'node:fs';
import { Webhook } from 'standardwebhooks';

const { headers, body, secrets } = JSON.parse(readFileSync(0, 'utf8'));

function verdict(secret, text) {
  try {
    new Webhook(secret).verify(text, headers);
    return 'verified';
  } catch (error) {
    if (error.name !== 'WebhookVerificationError' && error.constructor.name !== 'WebhookVerificationError') throw error;
    return 'refused';
  }
}

const verdicts = ['current', 'previous', 'other'].map((name) => `${name}: ${verdict(secrets[name], body)}`);
verdicts.push(`altered: ${verdict(secrets.current, `${body} `)}`);
console.log(verdicts.join('; '));
