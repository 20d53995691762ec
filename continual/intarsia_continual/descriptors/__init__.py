"""What a retriever knows of each adapter, fitted from that adapter's own texts alone."""
