"""What a server has besides as one person's app: a model chosen on its page, an end when the page is closed."""
