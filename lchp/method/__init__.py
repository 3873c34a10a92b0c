"""The paper: networks, losses, pseudo boxes, views, and a step of each link."""
