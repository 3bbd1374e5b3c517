"""What requests and answers look like: fields and their bounds, errors, and the shapes of OpenAI's API."""
