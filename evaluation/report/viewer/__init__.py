"""The viewer inside a subject's page: NiiVue, as published, and the volumes that it shows."""
