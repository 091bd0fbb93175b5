// Returns how a Tomcat servlet interprets a request, as JSON. Run as: java -cp tomcat-embed-core.jar Servlet.java PORT
import jakarta.servlet.http.HttpServlet;
import jakarta.servlet.http.HttpServletRequest;
import jakarta.servlet.http.HttpServletResponse;
import java.io.File;
import java.io.IOException;
import org.apache.catalina.Context;
import org.apache.catalina.startup.Tomcat;

public class Servlet extends HttpServlet {
    private final String handler;

    Servlet(String handler) {
        this.handler = handler;
    }

    @Override
    protected void service(HttpServletRequest request, HttpServletResponse response) throws IOException {
        StringBuilder body = new StringBuilder("{");
        member(body, "handler", handler);
        member(body, "method", request.getMethod());
        member(body, "path", request.getServletPath() + (request.getPathInfo() == null ? "" : request.getPathInfo()));
        member(body, "host", request.getServerName());
        member(body, "subject", request.getHeader("x-auth-subject"));
        member(body, "tenant", request.getHeader("x-auth-tenant"));
        member(body, "roles", request.getHeader("x-auth-roles"));
        response.setContentType("application/json");
        response.getWriter().print(body.append("}"));
    }

    private static void member(StringBuilder body, String name, String value) {
        if (body.length() > 1) {
            body.append(',');
        }
        body.append('"').append(name).append("\":");
        if (value == null) {
            body.append("null");
            return;
        }
        body.append('"');
        for (char letter : value.toCharArray()) {
            body.append(letter < ' ' || letter > '~' || letter == '"' || letter == '\\'
                    ? String.format("\\u%04x", (int) letter) : String.valueOf(letter));
        }
        body.append('"');
    }

    public static void main(String[] arguments) throws Exception {
        Tomcat tomcat = new Tomcat();
        File base = new File(System.getProperty("java.io.tmpdir"));
        tomcat.setBaseDir(base.getPath());
        tomcat.setHostname("127.0.0.1");
        tomcat.setPort(Integer.parseInt(arguments[0]));
        tomcat.getConnector().setProperty("address", "127.0.0.1");
        Context context = tomcat.addContext("", base.getPath());
        Tomcat.addServlet(context, "admin", new Servlet("admin"));
        context.addServletMappingDecoded("/admin/*", "admin");
        Tomcat.addServlet(context, "other", new Servlet("other"));
        context.addServletMappingDecoded("/", "other");
        tomcat.start();
        tomcat.getServer().await();
    }
}
